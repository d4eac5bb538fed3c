"""How is a large model tuned in little memory?"""
