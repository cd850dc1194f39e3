"""Pictures: any kind read, made ready for the encoders, cropped for training, and drawn as a contact sheet."""
