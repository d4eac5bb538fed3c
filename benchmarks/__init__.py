"""How fast is it, beside whom?"""
