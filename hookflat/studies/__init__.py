"""Many runs, trained and measured alike."""
