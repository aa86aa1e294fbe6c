class Answerer:
    pass
