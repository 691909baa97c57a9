"""Where arrays live: logical axes and, from them, shardings."""
