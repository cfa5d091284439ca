"""The notebooks as a person uses them. A package, so that its conftest is not taken for the one of
tests/.
"""
