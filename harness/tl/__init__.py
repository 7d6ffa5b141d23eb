"""LLM-TL, the language between an attention algorithm and a kernel. A module a job; parse.py is the way in."""
