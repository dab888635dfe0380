"""The GPU code generator: LoopNests to Triton source, interpreted or compiled to machine code.

Importing a module below may need the package triton; importing this one does not.
"""
