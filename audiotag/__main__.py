"`python -m audiotag`: the same as the `audiotag` program."

from audiotag.start import main

if __name__ == "__main__":
    raise SystemExit(main())
