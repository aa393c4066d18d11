"""The commands of `riverrun`, one module a group."""
