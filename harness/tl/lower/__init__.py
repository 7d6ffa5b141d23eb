"""The compilers: from a resolved program to a candidate's source. One module a back end."""
