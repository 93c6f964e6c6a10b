"""Where bytes lie. Local files are in `posix`."""
