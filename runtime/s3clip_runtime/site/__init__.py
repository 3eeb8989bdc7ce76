"""The site file: which cameras, what is made of them, and where it goes."""
