"""The command ``pipeline``, also as ``python -m pipeline``; where its extra is not installed, what to install."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    try:
        from pipeline.cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "pipeline").startswith("pipeline"):
            raise
        sys.exit(f"error: the command needs the package {error.name}\n  → pip install 'outbox-pipeline[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
