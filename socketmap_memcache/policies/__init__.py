"""Policies: who may send what, for check_policy_service, and how they are found."""
