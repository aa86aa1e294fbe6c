"""Between manifest and output: rows prepared, fed to the engine, answered, and handed on."""
