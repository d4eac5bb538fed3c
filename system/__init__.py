"""Where and how does a command run, and how do bytes reach disk and arrive from the network?"""
