"""The storyboards, one package a film."""
