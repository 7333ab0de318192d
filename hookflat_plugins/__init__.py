"""The methods that come with hookflat: one small file each, found through entry points like anyone else's.

"Protocol" and "quirk" in their docstrings are those of docs/protocol.md, by section and number.
"""
