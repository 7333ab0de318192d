"""The methods that come with hookflat: one small file each, found through entry points like anyone else's."""
