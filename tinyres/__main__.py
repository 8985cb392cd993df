"""`python -m tinyres` is the command `tinyres`."""

from tinyres.cli.main import app

if __name__ == "__main__":
    app(prog_name="tinyres")
