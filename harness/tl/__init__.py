"""LLM-TL, the language between an attention algorithm and a kernel. parse.py is the way in."""
