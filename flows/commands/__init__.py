"""The commands of `factory`, by what they are about: making, serving, remembering, the machine."""
