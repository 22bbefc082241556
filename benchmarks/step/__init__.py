"""What does one step cost, and what would N GPUs bring?"""
