"""An endpoint in the form of OpenAI's API: programs ask the base and its adapters by name, on one loaded base."""
