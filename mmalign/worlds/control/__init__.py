"""A small world of continuous control, whose motions have attributes that can be counted, and a planner that is asked for these."""
