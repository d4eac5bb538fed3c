"""What does a run show?"""
