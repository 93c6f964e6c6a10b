"""Running a plan: one unit function, two engines, one commit."""
