"""How do weights come from and go to other programs?"""
