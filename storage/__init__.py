"""What is a model file, and whose is it?"""
