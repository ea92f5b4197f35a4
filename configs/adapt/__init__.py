"""Recipes: each file's `get_config(arg)` is one method over the same step; base.py has what they share."""
