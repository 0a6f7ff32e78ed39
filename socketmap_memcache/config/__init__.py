"""Configuration files in main.cf syntax."""
