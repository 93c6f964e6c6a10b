"""Which tokens sources have, and which of their rows make up the output's.

Pure: files come as bytes, nothing is downloaded and no model code is imported.
"""
