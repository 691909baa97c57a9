"""Where arrays live: logical axes, meshes, and shardings from both."""
