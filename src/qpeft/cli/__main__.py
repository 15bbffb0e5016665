from qpeft.cli import main

main()
