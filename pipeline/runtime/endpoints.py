from pipeline.endpoints import *  # noqa
