"""The programs that train and judge spriteworld's weights; nothing at run time imports them."""
