"""AMD GPUs: relocatable objects to code objects, and the loader."""
