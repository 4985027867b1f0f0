"""One large language model over several AWS Trainium nodes, behind one OpenAI endpoint."""

from importlib.metadata import version

__version__ = version("rufus-serve")
