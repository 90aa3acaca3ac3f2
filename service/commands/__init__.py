"""The commands of `concord`, one module for those that belong together; `__main__` lists them."""
