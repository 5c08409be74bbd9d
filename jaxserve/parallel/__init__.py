"""Where arrays lie: on one device, or over the devices of a mesh."""
