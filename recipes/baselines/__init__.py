"""The two systems the paper compares with, as recipes whose stories have the layout of ``animeshooter generate``."""
