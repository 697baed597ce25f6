"""Operations with a slow reference and fast versions, each behind one public signature."""
