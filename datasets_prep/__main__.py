"""``python -m datasets_prep <command>``."""

from datasets_prep.cli import app

if __name__ == '__main__':
    app(prog_name='python -m datasets_prep')
