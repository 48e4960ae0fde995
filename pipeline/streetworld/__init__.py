"""Streetworld: synthetic streets, rendered to real video files, with exact truth.

`scene` draws a street from a seed, `raycast` and `shading` make its pictures, `clip`
writes one clip, `truth` is the file format (`TRUTH.md`).
"""
