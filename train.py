"""Run an experiment: `python train.py +experiment=das_ioi`; every key of conf/ can be
overridden.
"""

from iit.run import main

if __name__ == "__main__":
    main()
