# Compile for aarch64 Linux on another machine. Debian: apt install g++-aarch64-linux-gnu
#
#   cmake -DCMAKE_TOOLCHAIN_FILE=tools/aarch64/toolchain.cmake -DREMOE_CROSS_PYTHON=/usr/bin/python3 ...
#
# Python itself runs on this machine; REMOE_CROSS_INCLUDE names the folder of Python.h, which is the same
# for every 64-bit Linux.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
if(NOT CMAKE_C_COMPILER)
  set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
endif()
if(NOT CMAKE_CXX_COMPILER)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()
# What is compiled runs under qemu: ctest and try_run use it.
find_program(REMOE_EMULATOR qemu-aarch64-static)
if(REMOE_EMULATOR)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${REMOE_EMULATOR};-L;/usr/aarch64-linux-gnu")
endif()
# Programs are this machine's; headers and libraries the target's.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
