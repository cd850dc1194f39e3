"""How the small model is trained: pictures painted on the device that trains, and a loop that fills it."""
