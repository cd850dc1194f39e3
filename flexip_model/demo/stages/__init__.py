"""The small model's networks and adapter kinds, pictures from them, and the folder that ships."""
