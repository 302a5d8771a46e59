"""The Compare tab: columns side by side in a chat, and blind votes."""
