"""Conversations: files, chat templates, and which tokens of them are learnt."""
