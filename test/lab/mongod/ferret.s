// Empty: its presence lets the compiler accept initCommands, a function without a body.
