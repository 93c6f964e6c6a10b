"""Side by side with mergekit 0.1.5, a program that is run and never imported into these tests."""
